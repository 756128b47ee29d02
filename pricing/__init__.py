"""What a call used and what it cost, read from what was sent and answered. Pure: no I/O, no clock.

`read_answer` (answer.py) → `settle` (settle.py) → `PriceBook.find` (prices.py) → `cost` (cost.py).
"""
