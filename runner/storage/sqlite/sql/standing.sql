-- The revision of the tables, and the deployment that owns them.
SELECT (SELECT version_num FROM alembic_version), deployment_id FROM bus WHERE one = 1
