"""The HTTP edge: the OpenAI wire format, health and metrics."""
