"""Greets people."""


def greet(name: str) -> str:
    """Return a greeting for a name; the world is greeted where there is none."""
    return f"Hello, {name.strip() or 'world'}!"
