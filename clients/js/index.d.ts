/** The status of a user or device; `push_online` means reachable by push only. */
export type Status = "online" | "push_online" | "offline";

export type State = "closed" | "connecting" | "online" | "waiting";

export type ErrorCode =
  | "bad_option"
  | "no_websocket"
  | "no_token"
  | "cannot_connect"
  | "disconnected"
  | "no_answer"
  | "bad_frame"
  | "bad_parameter"
  | "unauthorized"
  | "unknown_platform"
  | "too_many_of_user"
  | "too_many_of_address"
  | "too_fast"
  | "not_ready"
  | "log_unavailable"
  // A newer gateway may have more codes.
  | (string & {});

/** The error of failed requests and of `error` events. */
export class RollcallError extends Error {
  constructor(code: ErrorCode, message: string);
  readonly code: ErrorCode;
}

export interface TokenRequest {
  device: string;
  platform: string;
  /** Why the previous token was refused, or null. */
  refused: string | null;
}

export interface Options {
  /** Where the gateway is, ws:// or wss://. */
  url: string;
  /** One of the policy's platforms, 1 to 64 bytes. */
  platform: string;
  /** An id of this installation or tab, 1 to 128 bytes. Without it a page generates an id and keeps it in sessionStorage. */
  device?: string;
  /** A JWT, or a function that returns one for each connection. */
  token?: string | ((request: TokenRequest) => string | Promise<string>);
  /** For a gateway without tokens. */
  user?: string;
  /** Name and version of the app. */
  app?: string;
  /** The class to connect with, if not the global one. */
  WebSocket?: new (url: string, protocols: string[]) => any;
  /** false: do not check whether another tab holds the device id. */
  claim?: boolean;
}

export interface Hello {
  user: string;
  gateway: string;
  epoch: number;
  conn: number;
  heartbeat_ms: number;
  timeout_ms: number;
  ping_ms?: number;
}

/** The current status of a user. */
export interface Standing {
  user: string;
  status: Status;
  version: number;
  since: number;
  custom_status: string | null;
  devices: { platform: string; status: Status }[];
}

export interface Change {
  user: string;
  status: Status;
  version: number;
  at: number;
  cause: string;
  custom_status: string | null;
  devices: { platform: string; before: Status; after: Status }[];
}

export interface Events {
  state: State;
  online: Hello;
  offline: { code: number; reason: string; comesBack: boolean };
  change: Change;
  standing: Standing;
  /** A user whose subscription was removed, because the client subscribed to too many users. */
  evicted: string;
  kicked: { reason: string; reconnect: boolean };
  /** The new device id, because another tab holds the previous one. */
  device: string;
  error: RollcallError;
}

export class Rollcall {
  /** Throws a RollcallError `bad_option` if an option is missing or too long. */
  constructor(options: Options);
  readonly state: State;
  /** The device id in use. */
  readonly device: string;
  /** The last `hello`. */
  readonly hello: Hello | null;
  /** Returns a function that removes the listener. */
  on<E extends keyof Events>(event: E, listener: (value: Events[E]) => void): () => void;
  /** A person logs in: connects, and may displace the user's other devices. Throws `no_websocket`. */
  login(): void;
  /** Reconnects without displacing another device. Throws `no_websocket`. */
  resume(): void;
  /** Logs out. Resolves when the logout is durable. */
  logout(): Promise<void>;
  /** Closes the connection and does not reconnect. */
  close(): void;
  background(): Promise<unknown>;
  foreground(): Promise<unknown>;
  /** null clears it. */
  setCustomStatus(text: string | null): Promise<unknown>;
  /** Up to 200 users. */
  query(users: string[]): Promise<{ users: Standing[]; unknown: string[] }>;
  /** Up to 200 users. Repeated automatically after each reconnect. */
  subscribe(users: string[]): Promise<{ users: Standing[]; unknown: string[]; evicted: string[] }>;
  unsubscribe(users: string[]): Promise<void>;
}
