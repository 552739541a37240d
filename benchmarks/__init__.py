"""One script per published claim; each prints its table and writes benchmarks/results/NAME.json."""
