"""The page about a registered version: one HTML file that a release meeting looks at.

It is no DVC output: it shows what the registry says (ledger, rules, champion), so it is made behind registering, by the
flow or by `dass report`. What DVC keeps of it are its inputs: masks, statistics, metrics, and the two pictures of the
stage `plots`. Equal versions under equal ledgers give equal bytes.
"""
