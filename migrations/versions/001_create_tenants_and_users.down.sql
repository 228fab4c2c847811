-- Migration: create tenants and users
-- Version: 001
-- Date: 2026-11-23

DROP TABLE IF EXISTS users;
DROP TABLE IF EXISTS tenants;
