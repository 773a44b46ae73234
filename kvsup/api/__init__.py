"""The HTTP edge: routes, handlers, one relay loop, one table of error answers."""
