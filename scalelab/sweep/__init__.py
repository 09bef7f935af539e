"""From a sweep specification to a plan: shapes, tokens, cost."""
