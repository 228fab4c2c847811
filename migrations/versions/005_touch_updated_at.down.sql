-- Migration: touch updated_at
-- Version: 005
-- Date: 2026-11-23

DROP TRIGGER IF EXISTS user_preferences_touch ON user_preferences;
DROP TRIGGER IF EXISTS ban_policies_touch ON ban_policies;
DROP TRIGGER IF EXISTS users_touch ON users;
DROP TRIGGER IF EXISTS tenants_touch ON tenants;
DROP FUNCTION IF EXISTS touch_updated_at();
