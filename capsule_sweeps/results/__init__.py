"""From finished runs to tables, comparisons, figures and reports."""
