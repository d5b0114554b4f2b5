"""From waiting inputs to results: batching policy, workers, and their supervision."""
