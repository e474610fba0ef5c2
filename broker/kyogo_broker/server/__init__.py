"""The gRPC edge: streams and calls become commands, effects become frames and statuses."""
