"""What a machine has, whether Granville can work there, and what to set. Every probe is a function from what was read
to findings; `survey` does the reading."""
