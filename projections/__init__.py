"""The read side: what the log adds up to, kept in tables that can be thrown away and rebuilt."""
