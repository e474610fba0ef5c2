"""Pure decisions. A policy answers; only the core acts on the answer."""
