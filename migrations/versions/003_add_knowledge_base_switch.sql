-- Migration: add knowledge base switch
-- Version: 003
-- Date: 2026-11-23

-- With a constant default the table is not rewritten, however long it is.
ALTER TABLE tenants ADD COLUMN IF NOT EXISTS knowledge_base_enabled boolean NOT NULL DEFAULT false;
