-- Migration: seed ban policies
-- Version: 006
-- Date: 2026-11-23

INSERT INTO ban_policies (id, name, strikes, lasts) VALUES
    ('6b0e7f0e-0000-4000-8000-000000000001', 'warning', 1, '1 hour'),
    ('6b0e7f0e-0000-4000-8000-000000000002', 'time-out', 3, '7 days'),
    ('6b0e7f0e-0000-4000-8000-000000000003', 'for good', 5, NULL)
ON CONFLICT (id) DO NOTHING;
