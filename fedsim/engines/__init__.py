"""How a worker trains its clients. Every engine keeps one contract (`fedsim.plan.Engine`) and gives the same numbers."""
