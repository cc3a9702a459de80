"""The route table: everything the API answers to, in one place.

The router and the OpenAPI document are both made from it, so neither can know a
route that the other does not.
"""

from enginegate.api import engines, fleet, pages, products
from enginegate.api.call import Route

TABLE: tuple[Route, ...] = (*engines.ROUTES, *products.ROUTES, *fleet.ROUTES, *pages.ROUTES)
