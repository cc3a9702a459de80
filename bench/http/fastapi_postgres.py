"""What such a gate usually is: FastAPI, and two reads from PostgreSQL for each admit."""

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated

import asyncpg
from fastapi import FastAPI, Header, HTTPException, Request
from pydantic import BaseModel

POOL = 16

SCHEMA = """
CREATE TABLE products (
  product_id uuid PRIMARY KEY, slug text UNIQUE NOT NULL, key_hash text UNIQUE NOT NULL
);
CREATE TABLE engines (
  engine_id uuid PRIMARY KEY, product_id uuid NOT NULL REFERENCES products, user_id text NOT NULL,
  status text NOT NULL, url text NOT NULL, api_key text NOT NULL, engine_version text NOT NULL,
  created_at timestamptz NOT NULL, last_health_at timestamptz, UNIQUE (product_id, user_id)
);
"""
PRODUCT = "SELECT product_id, slug FROM products WHERE key_hash = $1"
ENGINE = "SELECT * FROM engines WHERE product_id = $1 AND user_id = $2"


class Options(BaseModel):
    auto_provision: bool = False
    auto_wake: bool = False


class Engine(BaseModel):
    engine_id: str
    user_id: str
    status: str
    url: str
    api_key: str
    engine_version: str
    created_at: datetime
    last_health_at: datetime | None


class Admitted(BaseModel):
    admitted: bool = True
    engine: Engine
    action: str = "none"
    waited_ms: float = 0
    lease_s: float = 900


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(os.environ["DSN"], min_size=POOL, max_size=POOL) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/engines/{user_id}/admit")
async def admit(
    user_id: str,
    options: Options,  # noqa: ARG001 - read and checked, as a product's would be
    request: Request,
    x_platform_key: Annotated[str, Header()],
) -> Admitted:
    key_hash = hashlib.sha256(x_platform_key.encode()).hexdigest()
    async with request.app.state.pool.acquire() as connection:
        product = await connection.fetchrow(PRODUCT, key_hash)
        if product is None:
            raise HTTPException(401)
        row = await connection.fetchrow(ENGINE, product["product_id"], user_id)
    if row is None:
        raise HTTPException(404)
    return Admitted(engine=Engine(**dict(row) | {"engine_id": str(row["engine_id"])}))
