"""No work twice: equal inputs computed once, and results kept in a cache, under what their model and input are."""
