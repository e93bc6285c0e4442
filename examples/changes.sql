-- Flink SQL for the topics. Flink has no format for single-object encoding, so the engine must write with a schema
-- registry; broker and registry are examples. Needs flink-sql-connector-kafka and flink-sql-avro-confluent-registry.

CREATE TABLE changes (
  `id` STRING NOT NULL,
  `partition` INT NOT NULL,
  `offset` BIGINT NOT NULL,
  `seq` BIGINT NOT NULL,
  `user` STRING NOT NULL,
  `version` BIGINT NOT NULL,
  `at` BIGINT NOT NULL,
  `logged_at` BIGINT NOT NULL,
  `cause` STRING NOT NULL,
  `before` STRING NOT NULL,
  `after` STRING NOT NULL,
  `devices` ARRAY<ROW<`platform` STRING NOT NULL, `device` STRING NOT NULL, `gateway` STRING NOT NULL, `before` STRING NOT NULL, `after` STRING NOT NULL> NOT NULL> NOT NULL,
  `custom_status` STRING,
  `evidence` BIGINT NOT NULL,
  `time` AS TO_TIMESTAMP_LTZ(`at`, 3)
) WITH (
  'connector' = 'kafka',
  'topic' = 'presence.changes',
  'properties.bootstrap.servers' = '127.0.0.1:9092',
  'properties.group.id' = 'flink',
  'properties.isolation.level' = 'read_committed',
  'scan.startup.mode' = 'earliest-offset',
  'format' = 'avro-confluent',
  'avro-confluent.url' = 'http://127.0.0.1:8081'
);

-- The number of users who went online and who left this status, for each minute. Each change updates the row of its minute.
-- The query has no windows: a quiet partition has no changes, and therefore no watermark. It would keep all windows open, and
-- with 'scan.watermark.idle-timeout' its next changes can be lost.
SELECT
  FLOOR(`time` TO MINUTE) AS `minute`,
  COUNT(*) FILTER (WHERE `after` = 'online' AND `before` <> 'online') AS came,
  COUNT(*) FILTER (WHERE `before` = 'online' AND `after` <> 'online') AS went
FROM changes
GROUP BY FLOOR(`time` TO MINUTE);

CREATE TABLE current_users (
  `key` STRING NOT NULL,
  `user` STRING,
  `version` BIGINT,
  `status` STRING,
  `since` BIGINT,
  `custom_status` STRING,
  `devices` ARRAY<ROW<`platform` STRING NOT NULL, `device` STRING NOT NULL, `status` STRING NOT NULL> NOT NULL>,
  `partition` INT,
  `offset` BIGINT,
  PRIMARY KEY (`key`) NOT ENFORCED
) WITH (
  -- A record without a value is a user who was forgotten, and deletes the row.
  'connector' = 'upsert-kafka',
  'topic' = 'presence.current',
  'properties.bootstrap.servers' = '127.0.0.1:9092',
  'properties.group.id' = 'flink',
  'properties.isolation.level' = 'read_committed',
  'key.format' = 'raw',
  'value.format' = 'avro-confluent',
  'value.avro-confluent.url' = 'http://127.0.0.1:8081',
  'value.fields-include' = 'EXCEPT_KEY'
);

-- The number of users with each status now.
SELECT `status`, COUNT(*) AS users FROM current_users GROUP BY `status`;
