"""Programs for measuring, each run as python -m tools.NAME; nothing else imports them.

benchmark measures time and memory; ablate trains variants and draws their curves.
"""
