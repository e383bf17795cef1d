#!/usr/bin/env node
import { main } from 'tailrace-protocol/cli';
import { WebSocket } from 'ws';
import { connect } from './connection.js';

await main((base, { token }) => connect(base, { WebSocket, token }));
