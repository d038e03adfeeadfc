"""How a worker trains its clients. Every engine keeps one contract (`fedsim.plan.Engine`), with the same numbers."""
