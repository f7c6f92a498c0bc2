"""Functions that ship as workflow steps."""
