"""What the solutions share; knows no solution, no data set and no orchestrator."""
