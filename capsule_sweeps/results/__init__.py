"""From finished runs to tables, comparisons, figures and reports.

A table is a file here with two functions: one from the rows of `load_runs` and the name of a selection rule to a
DataFrame, and one to the notes that must be printed under it (see `ablation`). `render` prints it in every format,
`cli/results.py` chooses it by an option, and `report` shows it as one more section.
"""
