"""The nouns every room shares: frozen, without behaviour that needs a clock, IO or chance."""
