"""From finished runs to tables, comparisons, figures and reports.

A table is a file in this folder with two functions: from the rows of `load_runs` and the name of a selection rule, one
makes a DataFrame, the other the notes to print under it (see `ablation`). `render` prints it in every format, an option
of `cli/results.py` selects it, and `report` shows it as a section.
"""
