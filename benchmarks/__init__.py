"""What learning from drawings costs, measured: ``python -m benchmarks``. Not collected by the tests, not installed."""
