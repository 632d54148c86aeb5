"""Music over HTTP, streamed. `app.create_app` makes an ASGI application of bundles, `run.serve` serves it."""
