"""The store on PostgreSQL: its hot statements, and how its connections are made."""
