"""The privacy contract: events, noise, mechanisms, accounting, policy and ledger."""
