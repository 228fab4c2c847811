-- Migration: create ban policies
-- Version: 002
-- Date: 2026-11-23

-- A policy without a tenant is everybody's.
CREATE TABLE IF NOT EXISTS ban_policies (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    tenant_id uuid REFERENCES tenants (id) ON DELETE CASCADE,
    name varchar(100) NOT NULL,
    strikes integer NOT NULL CHECK (strikes > 0),
    lasts interval,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ban_policies_tenant_name_key UNIQUE (tenant_id, name)
);

COMMENT ON COLUMN ban_policies.lasts IS 'NULL: until somebody lifts it';

CREATE TABLE IF NOT EXISTS user_bans (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    policy_id uuid NOT NULL REFERENCES ban_policies (id),
    reason text NOT NULL DEFAULT '',
    banned_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz
);
