-- Migration: add knowledge base switch
-- Version: 003
-- Date: 2026-11-23

ALTER TABLE tenants DROP COLUMN IF EXISTS knowledge_base_enabled;
