-- Migration: create ban policies
-- Version: 002
-- Date: 2026-11-23

DROP TABLE IF EXISTS user_bans;
DROP TABLE IF EXISTS ban_policies;
