"""From files to arrays, records, groups and subsets, and the audit of a set."""
