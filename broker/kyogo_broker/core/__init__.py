"""The state machine: pure and synchronous. No clock, no chance, no await, no logging; facts in, state out."""
