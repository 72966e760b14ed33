"""The dashboard: pages for people, on the routes and behind the tokens of the HTTP interface."""
