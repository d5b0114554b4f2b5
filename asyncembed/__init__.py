"""Local embedding models behind `async for`."""
