"""History of what the router did: records, Parquet segments, DuckDB views, queries and reports.

Rule of this package: it knows nothing of routing, scoring or the service. They hand it records and ask it questions.
"""
