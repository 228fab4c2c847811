-- Two roles for one service: one that migrates, one that serves. Run once, as the database's owner.
--
-- These passwords are for docker-compose.yml on a developer's machine only.

CREATE ROLE migrator LOGIN PASSWORD 'migrator';
CREATE ROLE app LOGIN PASSWORD 'app';

-- Up to PostgreSQL 14 everybody may create tables.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT CREATE, USAGE ON SCHEMA public TO migrator;

-- The service changes rows, not tables.
ALTER DEFAULT PRIVILEGES FOR ROLE migrator IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO app;
ALTER DEFAULT PRIVILEGES FOR ROLE migrator IN SCHEMA public GRANT USAGE ON SEQUENCES TO app;

-- The history apart: in public, the service could write to it by the defaults above. `--reader app` lets it read.
CREATE SCHEMA pgratchet AUTHORIZATION migrator;
GRANT USAGE ON SCHEMA pgratchet TO app;
