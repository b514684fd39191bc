"""The gRPC edge. With `service/http`, the only place where generated protos appear on the server's side."""
