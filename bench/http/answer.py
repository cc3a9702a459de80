"""The bytes that the floors answer with: as long as a real admit."""

BODY = (
    b'{"admitted":true,"engine":{"engine_id":"5c2f0c3e-8f0b-4c1d-9a44-0d6a3a4b5c6d",'
    b'"user_id":"user-1","status":"running","url":"http://127.0.0.1:9001",'
    b'"api_key":"sk-eg-0123456789012345678901234567890123456789012",'
    b'"engine_version":"process","created_at":"2026-04-27T12:34:56.000Z",'
    b'"last_health_at":"2026-04-27T12:35:11.000Z"},'
    b'"action":"none","waited_ms":0,"lease_s":900.0}'
)
HEADERS = [
    (b"content-type", b"application/json"),
    (b"content-length", str(len(BODY)).encode()),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
]
