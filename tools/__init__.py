"""Commands for developers of routecast; not shipped."""
