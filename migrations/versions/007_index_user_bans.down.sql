-- Migration: index user bans
-- Version: 007
-- Date: 2026-11-23

DROP INDEX CONCURRENTLY IF EXISTS user_bans_user_expires_idx;
