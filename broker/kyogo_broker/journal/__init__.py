"""Where facts become durable."""
