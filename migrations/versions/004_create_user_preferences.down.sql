-- Migration: create user preferences
-- Version: 004
-- Date: 2026-11-23

DROP TABLE IF EXISTS user_preferences;
