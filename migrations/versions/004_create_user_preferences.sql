-- Migration: create user preferences
-- Version: 004
-- Date: 2026-11-23

CREATE TABLE IF NOT EXISTS user_preferences (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name varchar(100) NOT NULL,
    value varchar(1000) NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT user_preferences_user_name_key UNIQUE (user_id, name)
);

CREATE INDEX IF NOT EXISTS user_preferences_name_idx ON user_preferences (name);
