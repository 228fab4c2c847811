-- Migration: index user bans
-- Version: 007
-- Date: 2026-11-23

-- Alone in its file: CONCURRENTLY cannot run in the transaction that others would share with it.
CREATE INDEX CONCURRENTLY IF NOT EXISTS user_bans_user_expires_idx ON user_bans (user_id, expires_at);
