"""The store on SQLite: its hot statements, and how its connections are made."""
